# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_process
from dials_diffuse.cli.process import run

if __name__ == "__main__":
    raise SystemExit(run())
