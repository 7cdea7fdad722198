# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_export
from dials_diffuse.cli.export import run

if __name__ == "__main__":
    raise SystemExit(run())
