# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_model
from dials_diffuse.cli.model import run

if __name__ == "__main__":
    raise SystemExit(run())
