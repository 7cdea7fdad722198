# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_simulate
from dials_diffuse.cli.simulate import run

if __name__ == "__main__":
    raise SystemExit(run())
