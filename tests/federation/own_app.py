"""Somebody's Flower app, with and without our mod and strategy; run as a program by test_flower.py. The last line is a JSON of what both found.

A grid that calls the app in this process stands in for Flower's own.
"""

import json
import sys
import uuid

import numpy as np

from selgrad import encryption
from selgrad.federation.mods import SelectiveFedAvg, selective_encryption

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


if __name__ == "__main__":
    folder = sys.argv[1]
    encryption.KeyHolder().save(folder)
    holder = encryption.KeyHolder.load(folder)
    common = {"fraction_evaluate": 0.0, "min_train_nodes": 3, "min_available_nodes": 3}
    plain, _ = trained(client_app([]), FedAvg(**common))
    mac = b"shared by all six"
    mod = selective_encryption(f"{folder}/client.key", mac_key=mac)
    sealed, _ = trained(client_app([mod]), SelectiveFedAvg(ratio=0.3, decrypt=holder.decrypt, max_examples=100, mac_key=mac, **common))
    other = selective_encryption(f"{folder}/client.key", mac_key=b"somebody else, 16+")
    forged, _ = trained(client_app([other]), SelectiveFedAvg(ratio=0.3, decrypt=holder.decrypt, max_examples=100, mac_key=mac, **common))
    # Everything is encrypted and moves by 3 a round, beyond the bound of 1, and a counter, by 3 too, which is not encrypted and so has no bound.
    far = {"move": lambda _, array: np.full(array.shape, 3.0)}
    arrays = (np.zeros(4, np.float32), np.zeros(2, np.int64))
    both = lambda: SelectiveFedAvg(ratio=1.0, decrypt=holder.decrypt, max_examples=70, **common)
    refused, reasons = trained(client_app([selective_encryption(f"{folder}/client.key")], **far), both(), arrays)
    clipped, _ = trained(client_app([selective_encryption(f"{folder}/client.key", clip=True)], **far), both(), arrays)
    found = {"plain": plain, "sealed": sealed, "forged": forged, "refused": refused, "reasons": reasons, "clipped": clipped}
    print(json.dumps(found))
