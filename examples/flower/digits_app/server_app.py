"""The server: Flower's FedAvg, with one that cannot read what it averages in its place."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from digits_app import task
from selgrad.federation.key_holder import connect, key_holder_here
from selgrad.federation.mods import SelectiveFedAvg
from selgrad.federation.terms import Terms, enrol

app = ServerApp()


def key_holder(grid: Grid, context: Context):
    """The link to it; a simulation enrols everybody by itself first, which a deployment never leaves to the server."""
    given = context.run_config
    if given["enrolment"]:
        return connect(str(given["enrolment"]), str(given["key-holder"]), root_certificates=str(given["root-certificates"]) or None)
    terms = Terms(clients=len(list(grid.get_node_ids())), max_examples=1500, ratio=float(given["ratio"]), agreement=str(given["agreement"]))
    return key_holder_here(enrol(terms, task.simulated_keys(context.run_id)))


def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": task.accuracy(arrays.to_numpy_ndarrays(), *task.test_data())})


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = SelectiveFedAvg(key_holder=key_holder(grid, context), fraction_evaluate=0.0)
    rounds = int(context.run_config["num-server-rounds"])
    result = strategy.start(grid, ArrayRecord(task.initial()), num_rounds=rounds, evaluate_fn=evaluate)
    share = strategy.mask.mean()
    print(f"accuracy after {rounds} rounds: {result.evaluate_metrics_serverapp[rounds]['accuracy']:.3f}; {share:.0%} of every update left its client encrypted")
