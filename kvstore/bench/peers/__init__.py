"""`kvstore bench peers`: kvstore beside the systems that people use today, on this machine, in one run.

`systems` names them, `drivers` runs each in a process of its own, `player` is the handle of one such process,
`conductor` takes turns and checks content, `chart` draws, `install` makes the environments that the peers need.
"""

from kvstore.bench.peers.conductor import Result, run
from kvstore.bench.peers.systems import SYSTEMS, System, choose

__all__ = ["SYSTEMS", "Result", "System", "choose", "run"]
