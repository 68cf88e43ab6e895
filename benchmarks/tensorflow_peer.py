"""TensorFlow's sampled losses in a process of their own: beside torch's libraries it would abort.

Run as a module it is the other end of `TensorFlowStep`: options as JSON in the first line, then a step for each
further line, answered by its seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import problems

LR = 0.01


@dataclass(frozen=True)
class Step:
    """Which step TensorFlow is to make.

    Attributes:
        loss: "sampled_softmax_loss" or "nce_loss", with their own log-uniform sampler.
        optimizer: "keras", the Adagrad of Keras, which makes a sparse gradient dense; or "sparse", that of
            `tf.compat.v1.train`, which updates the rows touched.
    """

    loss: str
    optimizer: str
    rows: int
    num_classes: int
    features: int
    num_samples: int
    threads: int


class TensorFlowStep:
    """Times the steps of another process, by its own clock.

    Raises:
        ImportError: TensorFlow is not installed.
    """

    def __init__(self, step: Step) -> None:
        environment = os.environ | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            "KERAS_BACKEND": "tensorflow",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.tensorflow_peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            env=environment,
        )
        self.ask(json.dumps(asdict(step)))

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        answer = self.process.stdout.readline()
        if not answer:
            self.close()
            raise RuntimeError(f"TensorFlow's process ended with {self.process.returncode}")
        content: dict[str, Any] = json.loads(answer)
        if "missing" in content:
            self.close()
            raise ImportError(f"no module named {content['missing']}", name=content["missing"])
        if "error" in content:
            self.close()
            raise RuntimeError(f"TensorFlow: {content['error']}")
        return content

    def __call__(self) -> float:
        """Make a step and return its seconds."""
        return float(self.ask("step")["seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __del__(self) -> None:
        """End the process with the last reference to it."""
        if hasattr(self, "process"):
            self.close()


def serve() -> None:
    """Answer the lines of `TensorFlowStep`."""
    try:
        call = build(Step(**json.loads(sys.stdin.readline())))
        print("{}", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            call()
            print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    except ImportError as error:
        print(json.dumps({"missing": error.name or "tensorflow"}), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


def build(step: Step) -> Any:
    """Compile a step: loss, gradient of hidden and parameters, optimizer."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(step.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    bound = step.features**-0.5
    weight = tf.Variable(tf.random.uniform((step.num_classes, step.features), -bound, bound))
    bias = tf.Variable(tf.zeros((step.num_classes,)))
    if step.optimizer == "keras":
        optimizer = tf.keras.optimizers.Adagrad(LR)
        optimizer.build([weight, bias])
    else:
        optimizer = tf.compat.v1.train.AdagradOptimizer(LR)
    loss_of = getattr(tf.nn, step.loss)

    @tf.function  # type: ignore[untyped-decorator]
    def train(hidden: Any, target: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            loss = tf.reduce_mean(loss_of(weight, bias, target, hidden, step.num_samples, step.num_classes))
        hidden_grad, weight_grad, bias_grad = tape.gradient(loss, [hidden, weight, bias])
        optimizer.apply_gradients([(weight_grad, weight), (bias_grad, bias)])
        return loss, hidden_grad

    made = problems.batches(step.rows, step.num_classes, step.features)
    seen = [next(made) for _ in range(problems.BATCHES)]
    batches = [(tf.constant(hidden), tf.constant(target[:, None])) for hidden, target in seen]
    taken = iter(range(1 << 62))

    def call() -> None:
        loss, hidden_grad = train(*batches[next(taken) % len(batches)])
        loss.numpy()
        hidden_grad[0, 0].numpy()

    return call


if __name__ == "__main__":
    serve()
