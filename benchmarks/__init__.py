"""Benchmarks of speed and memory: `python -m benchmarks --help`.

cases.py     the tables of cases to measure, as data, and the options
shift.py     the tables of the operation
block.py     the tables of the block around it
nets.py      the tables of networks: training, inference, memory
images.py    the tables of input from JPEG files, and their cases
jax_*.py     builds the cases of JAX
torch_*.py   builds the cases of PyTorch
worker.py    a process that builds cases and times them
turns.py     times cases in turns, over such processes
report.py    JSON and tables; the sections of README.md and docs/speed.md
console.py   tables on the console
figure.py    docs/speed.png
tpu*.py      costs on a TPU, estimated from its compiler
gpu_costs.py costs on a GPU, estimated from its compiler
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
