# LIBTBX_SET_DISPATCHER_NAME dials.diffuse_report
from dials_diffuse.cli.report import run

if __name__ == "__main__":
    raise SystemExit(run())
