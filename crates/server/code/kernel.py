"""Starts a Python kernel: ipykernel, with what the platform adds to it.

Called as `kernel.py -f CONNECTION_FILE`. Adds to the shell: charts next to figures, and variables of the environment
that hold for one execution.
"""

import os
import sys

# The directory of this file is not one that a cell imports from.
sys.path[0] = ""

import importlib.abc
import importlib.util
import types

from ipykernel.kernelapp import IPKernelApp
from IPython.core.formatters import JSONFormatter
from traitlets import Unicode

CHART = "application/vnd.nullspace.chart+json"


def load(name):
    """A module that lies beside this file."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    spec = importlib.util.spec_from_file_location("nullspace_" + name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ChartFormatter(JSONFormatter):
    """A figure as a chart. Nothing is registered by type: matplotlib's own display takes that away again."""

    format_type = Unicode(CHART)
    charts = None

    def __call__(self, value):
        kinds = type(value).__mro__
        if any(kind.__name__ == "Figure" and kind.__module__ == "matplotlib.figure" for kind in kinds):
            return self.charts.of_figure(value)
        return None


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module once that is imported."""

    def __init__(self, name, then):
        self.name, self.then = name, then

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                self.then(module)

            spec.loader.exec_module = exec_module
        return spec


def environment():
    """`push` sets variables until `pop`."""
    module = types.ModuleType("nullspace_env")
    before = []

    def push(values):
        before.append({name: os.environ.get(name) for name in values})
        os.environ.update(values)

    def pop():
        for name, value in before.pop().items() if before else ():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    module.push, module.pop = push, pop
    sys.modules[module.__name__] = module


def main():
    app = IPKernelApp.instance()
    app.initialize(sys.argv[1:] + ["--InteractiveShell.colors=nocolor"])
    charts = load("charts")
    sys.meta_path.insert(0, AfterImport("matplotlib.axes._axes", charts.remember_pies))
    formatter = ChartFormatter(parent=app.shell.display_formatter)
    formatter.charts = charts
    app.shell.display_formatter.formatters[CHART] = formatter
    if CHART not in app.shell.display_formatter.active_types:
        app.shell.display_formatter.active_types.append(CHART)
    environment()
    app.start()


if __name__ == "__main__":
    main()
