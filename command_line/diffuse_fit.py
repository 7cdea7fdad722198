# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_fit
from dials_diffuse.cli.fit import run

if __name__ == "__main__":
    raise SystemExit(run())
