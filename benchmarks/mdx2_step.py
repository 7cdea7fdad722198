"""Run one program of mdx2: ``mdx2_step.py FAST,SLOW NAME ARGUMENTS...``, with the size of a module of the detector.

mdx2 looks that up in dxtbx's table of detectors, which does not have simulated ones.
"""

from __future__ import annotations

import sys
from importlib import import_module

import mdx2.dxtbx_machinery as machinery

fast, slow = map(int, sys.argv[1].split(","))
machinery.sensor_active_areas = lambda panels: [(0, 0, fast, slow)]
sys.argv = [f"mdx2.{sys.argv[2]}", *sys.argv[3:]]
import_module(f"mdx2.command_line.{sys.argv[0][5:]}").run()
