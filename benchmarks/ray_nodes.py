"""A Ray cluster on one machine, whose nodes come and go as lines on standard input say: `add`, or anything else for the removal of the oldest.

Command: started by benchmarks/faults.py and tests/test_executors.py; a process of its own, so that nothing of it is left in theirs.
Leaves: after each line `cluster ADDRESS` on standard output.
"""

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    cluster, nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}), []
    for line in sys.stdin:
        if line.startswith("add"):
            nodes.append(cluster.add_node(num_cpus=1))
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        print("cluster", cluster.address, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
