"""A Ray cluster on one machine, whose nodes come and go as lines on standard input say.

Lines: `add` adds a node of one core. `attach` adds nodes without cores until a driver that is started next on this machine would join the cluster through another
  node than the head; `detach` kills that node and waits until the cluster knows, `remove` the oldest other one that has a core.
Command: started by benchmarks/faults.py and tests/test_executors.py; a process of its own, so that nothing of it is left in theirs.
Leaves: after each line `cluster ADDRESS` on standard output.
"""

import sys
import time
from typing import Any

import ray
from ray._private import services
from ray.cluster_utils import Cluster


class Nodes:
    """A head without cores, which stays, and what comes and goes."""

    def __init__(self) -> None:
        # A node that refuses connections is dead after one second; by default it is after twelve.
        checks = {"health_check_period_ms": 300, "health_check_failure_threshold": 3}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": checks})
        # Each with its cores.
        self._nodes: list[tuple[Any, int]] = []
        self._attached: Any = None

    def add(self, num_cpus: int = 1) -> None:
        self._nodes.append((self.cluster.add_node(num_cpus=num_cpus), num_cpus))

    def attach(self) -> None:
        """Ray takes the first node of the machine in an order that says nothing."""
        while (joined := self._joined()) == self.cluster.head_node.node_id:
            self.add(num_cpus=0)
        self._attached = next(entry for entry in self._nodes if entry[0].node_id == joined)

    def _joined(self) -> str:
        return str(services.get_node_to_connect_for_driver(self.cluster.address, ray.util.get_node_ip_address())["node_id"])

    def detach(self) -> None:
        self._kill(self._attached)
        while self._joined() == self._attached[0].node_id:
            time.sleep(0.1)

    def remove(self) -> None:
        self._kill(next(entry for entry in self._nodes if entry != self._attached and entry[1]))

    def _kill(self, entry: Any) -> None:
        self._nodes.remove(entry)
        self.cluster.remove_node(entry[0], allow_graceful=False)


def main() -> None:
    nodes = Nodes()
    for line in sys.stdin:
        getattr(nodes, line.strip())()
        print("cluster", nodes.cluster.address, flush=True)
    nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
