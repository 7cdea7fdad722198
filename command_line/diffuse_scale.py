# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_scale
from dials_diffuse.cli.scale import run

if __name__ == "__main__":
    raise SystemExit(run())
