# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_show
from dials_diffuse.cli.show import run

if __name__ == "__main__":
    raise SystemExit(run())
