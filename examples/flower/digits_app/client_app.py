"""The client: an ordinary Flower app, and one line that encrypts a share of what leaves it."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app import task
from selgrad.federation.mods import selective_encryption


def enrolment(context: Context):
    """A node's own folder; in a simulation that of all, from which each takes its own."""
    return context.node_config.get("enrolment") or task.simulated_keys(context.run_id)


app = ClientApp(mods=[selective_encryption(enrolment)])


@app.train()
def train(message: Message, context: Context) -> Message:
    x, y = task.data(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))
    weights = message.content["arrays"].to_numpy_ndarrays()
    new, loss = task.train(weights, x, y, int(context.run_config["local-steps"]), float(context.run_config["learning-rate"]))
    content = {"arrays": ArrayRecord(new), "metrics": MetricRecord({"loss": loss, "num-examples": len(x)})}
    return Message(RecordDict(content), reply_to=message)
