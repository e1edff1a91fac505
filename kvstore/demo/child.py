"""`python -m kvstore.demo.child` reads a `Job` from standard input and prints the `Case`s that it measured."""

import json
import sys
from dataclasses import asdict

from kvstore.demo.restarted import Job, run

if __name__ == "__main__":
    json.dump({name: asdict(case) for name, case in run(Job(**json.load(sys.stdin))).items()}, sys.stdout)
