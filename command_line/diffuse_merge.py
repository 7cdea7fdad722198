# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_merge
from dials_diffuse.cli.merge import run

if __name__ == "__main__":
    raise SystemExit(run())
