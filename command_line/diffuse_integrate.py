# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_integrate
from dials_diffuse.cli.integrate import run

if __name__ == "__main__":
    raise SystemExit(run())
