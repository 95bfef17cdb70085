"""Somebody's Flower app, with and without our mod and strategy; run as a program by test_flower.py. The last line is a JSON of what both found.

A grid that calls the app in this process stands in for Flower's own.
"""

import json
import sys
import uuid
from pathlib import Path

import numpy as np

from selgrad.federation.key_holder import key_holder_here
from selgrad.federation.mods import SelectiveFedAvg, selective_encryption
from selgrad.federation.terms import Terms, enrol

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict  # isort: skip
from flwr.clientapp import ClientApp  # isort: skip
from flwr.serverapp import Grid, ServerApp  # isort: skip
from flwr.serverapp.strategy import FedAvg  # isort: skip


def client_app(mods, move=lambda generator, array: generator.normal(scale=0.1, size=array.shape)):
    app = ClientApp(mods=mods)

    @app.train()
    def train(message, context):
        arrays = message.content["arrays"].to_numpy_ndarrays()
        partition = int(context.node_config["partition-id"])
        generator = np.random.default_rng([partition, int(message.content["config"]["server-round"])])
        new = [a + move(generator, a).astype(a.dtype) for a in arrays]
        metrics = MetricRecord({"num-examples": 10 * (partition + 1), "loss": 1.0})
        return Message(RecordDict({"arrays": ArrayRecord(new), "metrics": metrics}), reply_to=message)

    return app


class InProcess(Grid):
    def __init__(self, app, count):
        self._app, self._replies, self.reasons = app, {}, []
        self._contexts = {
            100 + i: Context(run_id=1, node_id=100 + i, node_config={"partition-id": i, "num-partitions": count}, state=RecordDict(), run_config={})
            for i in range(count)
        }

    def set_run(self, run):
        pass

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self._contexts)

    def push_messages(self, messages):
        identities = []
        for message in messages:
            message.metadata.__dict__.update(_run_id=1, _src_node_id=1, _message_id=str(uuid.uuid4()))
            identities.append(message.metadata.message_id)
            try:
                reply = self._app(message, self._contexts[message.metadata.dst_node_id])
            except Exception as error:  # as Flower does
                self.reasons.append(str(error))
                reply = Message(Error(code=2, reason=str(error)), reply_to=message)
            reply.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self._replies[message.metadata.message_id] = reply
        return identities

    def pull_messages(self, message_ids):
        return [self._replies.pop(identity) for identity in list(message_ids) if identity in self._replies]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))


START = np.zeros((40, 60), np.float32), np.ones(7, np.float32)


def trained(app, strategy, start=START):
    found, server = {}, ServerApp()

    @server.main()
    def main(grid, context):
        arrays = ArrayRecord([*start])
        found["result"] = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=2, train_config=ConfigRecord({}))

    grid = InProcess(app, 3)
    server(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    return [array.tolist() for array in found["result"].arrays.to_numpy_ndarrays()], grid.reasons


def sealed(folder, mods=None, start=START, terms=None, **options):
    keys = enrol(Terms(**{"clients": 3, "max_examples": 100, "ratio": 0.3, **(terms or {})}), folder)
    strategy = SelectiveFedAvg(key_holder=key_holder_here(keys), **common)
    return trained(client_app(mods or [selective_encryption(keys, clip=options.pop("clip", False))], **options), strategy, start)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    common = {"fraction_evaluate": 0.0, "min_train_nodes": 3, "min_available_nodes": 3}
    plain, _ = trained(client_app([]), FedAvg(**common))
    same, _ = sealed(folder / "same")
    by_vote, _ = sealed(folder / "vote", terms={"agreement": "vote"})
    others = enrol(Terms(clients=3, max_examples=100, ratio=0.3), folder / "others")
    forged, _ = sealed(folder / "forged", [selective_encryption(others)])
    # Everything is encrypted and moves by 3 a round, beyond the bound of 1, and a counter, by 3 too, which is not encrypted and so has no bound.
    far = {
        "move": lambda _, array: np.full(array.shape, 3.0),
        "start": (np.zeros(4, np.float32), np.zeros(2, np.int64)),
        "terms": {"ratio": 1.0, "max_examples": 70},
    }
    refused, reasons = sealed(folder / "refused", **far)
    clipped, _ = sealed(folder / "clipped", clip=True, **far)
    found = {"plain": plain, "sealed": same, "by_vote": by_vote, "forged": forged, "refused": refused, "reasons": reasons, "clipped": clipped}
    print(json.dumps(found))
