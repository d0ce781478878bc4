"""Figures that the reader can change, on the website and in JupyterLab.

Two kinds. An :class:`Explorer` is one HTML output that needs no kernel; a
:class:`Panel` runs the package itself and needs one.

How to write a new explorer ``dial``:

1. ``js/dial.js`` imports from ``./lib.js`` what it needs and ends with
   ``export default define({ formulas, controls, change, view })``.
2. ``formulas``: pure functions of plain numbers, also exported by name.
3. ``controls(data)`` lists the controls: ``kind`` (``slider``, ``radio``,
   ``select``, ``steps``, ``hidden``), ``key``, ``label``, ``value``; sliders
   have ``min``, ``max``, ``unit``, ``values`` (stops) or ``step``, ``real``
   or ``even``; any has ``when(state)``, ``wide``, ``group`` (foldable).
   ``steps`` adds Back, Play and Next. Bad input never reaches the state.
4. ``change(state, why, data)``, if wanted, repairs a state: a chosen preset
   sets other controls.
5. ``view(state, {data, width})`` returns ``{html, say}``: a drawing for that
   width, made of ``plot``, ``bars``, ``tiles``, ``table``, ``heading``,
   ``fold``, ``pick`` (a button that sets state), ``svg``, ``text``, ``mark``;
   and one or two sentences with the decisive numbers for the live status.
   It is pure: Node draws hundreds of states and rejects NaN. Numbers go
   through ``num``, ``bytes``, ``flop``, ``seconds``, ``times``, ``plural``.
6. ``dial.py`` has one function that returns ``Explorer("dial", data,
   title=…, columns=…, rows=…, checks=[(formula, arguments, value)], hint=…)``
   with ``value`` computed by the package; add it here.
7. ``tests/test_explorers.py``: add it to ``ALL`` and each formula, with its
   Python twin and a sampler, to ``FORMULAS``. Data without formulas (frames
   of a real run) passes ``check: () => []`` to ``define``.

A live panel is ``Panel(title, fields, answer)`` with ``answer(**values)``
returning an :class:`Answer`; ``ValueError`` becomes a sentence.
"""

from dsarch.teaching.explorers.absorption_dial import absorption_dial
from dsarch.teaching.explorers.agent_trajectory import agent_trajectory
from dsarch.teaching.explorers.base import Explorer
from dsarch.teaching.explorers.cost import cost
from dsarch.teaching.explorers.dpo_margins import dpo_margins
from dsarch.teaching.explorers.fp8 import fp8
from dsarch.teaching.explorers.group_advantage import group_advantage
from dsarch.teaching.explorers.head_map import head_map
from dsarch.teaching.explorers.kl_estimators import kl_estimators
from dsarch.teaching.explorers.kv_cache import kv_cache
from dsarch.teaching.explorers.live import Answer, Panel
from dsarch.teaching.explorers.live_fp8 import live_fp8
from dsarch.teaching.explorers.live_kv_cache import live_kv_cache
from dsarch.teaching.explorers.live_routing import live_routing
from dsarch.teaching.explorers.memory_planner import memory_planner
from dsarch.teaching.explorers.parameters import parameters
from dsarch.teaching.explorers.pipeline_editor import pipeline_editor
from dsarch.teaching.explorers.rotation import rotation
from dsarch.teaching.explorers.routing import routing
from dsarch.teaching.explorers.scaling_planner import scaling_planner
from dsarch.teaching.explorers.schedule_designer import schedule_designer
from dsarch.teaching.explorers.speculation import speculation
from dsarch.teaching.explorers.temperature import temperature
from dsarch.teaching.explorers.walk import walk

__all__ = [
    "Answer",
    "Explorer",
    "Panel",
    "absorption_dial",
    "agent_trajectory",
    "cost",
    "dpo_margins",
    "fp8",
    "group_advantage",
    "head_map",
    "kl_estimators",
    "kv_cache",
    "live_fp8",
    "live_kv_cache",
    "live_routing",
    "memory_planner",
    "parameters",
    "pipeline_editor",
    "rotation",
    "routing",
    "scaling_planner",
    "schedule_designer",
    "speculation",
    "temperature",
    "walk",
]
