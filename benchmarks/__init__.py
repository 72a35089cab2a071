"""What measures speed: `python -m benchmarks --help`.

cases.py     what is measured, as data: tables of cases; and the options
shift.py     the tables of the operation
block.py     the tables of the block around it
nets.py      the tables of networks: training, inference, memory
jax_*.py     our cases, built
torch_*.py   PyTorch's
worker.py    a process that builds cases and times them
turns.py     cases in turns, over such processes
report.py    JSON and tables; the sections of README.md and docs/speed.md
console.py   tables on the console
picture.py   docs/speed.png
tpu*.py      costs on a TPU, by its compiler
gpu_costs.py costs on a GPU, by its compiler
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
