"""Speed of the backbones against the same networks in PyTorch, in turns in one run, as JSON.

    python tests/benchmarks/backbone.py [--torch-python PYTHON] [--models ResNet50 MobileFaceNet ViT GlyphNet] \\
        [--threads 1 2] [--ranks 1 2] [--rounds 4] [--steps 1]

A step is forward, backward, averaging over the ranks, and an update by SGD with momentum and weight decay; the weights
are copied to PyTorch, and embeddings and gradients compared before. Dropout is off. Each case runs twice: as a user
gets both libraries ("as is"), and with a malloc that keeps all memory for both ("tuned malloc"). Ratios above 1 mean
that plsc is faster. The best round of each counts: others use the machine too, which `cpu_seconds` feel less than
`seconds`. The share of the product rate counts convolutions and linear layers. PyTorch may be in an environment of its
own, whose Python `--torch-python` names.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from checkout import ROOT

CASES = {"ResNet50": (8, 112), "MobileFaceNet": (32, 112), "ViT": (8, 112), "GlyphNet": (64, 32)}  # batch, side
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}
RATE, MOMENTUM, DECAY, DROPOUT = 1e-3, 0.9, 5e-4, 0.0


def inputs_of(model, emb_dim):
    """A batch of images and the gradient of its embeddings, the same in every process."""
    (batch, side), rng = CASES[model], np.random.default_rng(0)
    images = rng.standard_normal((batch, 3, side, side), dtype="float32")
    return images, rng.standard_normal((batch, emb_dim), dtype="float32") / batch


class PaddleSide:
    """plsc's network on Paddle. It writes its weights into a file, for its twin."""

    def __init__(self, model, ranks):
        import paddle

        from plsc import parallel  # before paddle: it sets the threads
        from plsc.layers.convolution import fast_convolutions
        from plsc.models import GlyphNet, build, build_model

        self.paddle, self.fast_convolutions = paddle, fast_convolutions
        parallel.initialise()
        paddle.seed(0)
        side = CASES[model][1]
        shape = (3, side, side)
        is_glyphs = model == "GlyphNet"
        network = GlyphNet(128, shape, (32, 64, 128)) if is_glyphs else build_model(model, 512, shape)
        self.emb_dim = build(network, shape)
        for layer in network.sublayers():
            if isinstance(layer, paddle.nn.Dropout):
                layer.p = DROPOUT
        network.train()
        self.trained = [parameter for parameter in network.parameters() if not parameter.stop_gradient]
        self.network = parallel.distributed_model(network, False)
        self.optimizer = paddle.optimizer.Momentum(
            RATE, MOMENTUM, self.trained, weight_decay=paddle.regularizer.L2Decay(DECAY)
        )
        self.transposed = {id(layer.weight) for layer in network.sublayers() if isinstance(layer, paddle.nn.Linear)}

    def arrays(self, of_gradients):
        """Weights or gradients, in the layout of PyTorch."""
        for parameter in self.trained:
            array = (parameter.grad if of_gradients else parameter).numpy()
            yield array.T if id(parameter) in self.transposed else array

    def save_weights(self, file):
        np.savez(file, *self.arrays(False))

    def backward(self, images, gradient):
        with self.fast_convolutions():
            embedding = self.network(self.paddle.to_tensor(images))
        embedding.backward(self.paddle.to_tensor(gradient))
        return embedding.numpy()

    def update(self):
        self.optimizer.step()
        self.optimizer.clear_grad()

    def product(self, size):
        matrix = self.paddle.ones([size, size])
        return lambda: self.paddle.matmul(matrix, matrix)


class TorchSide:
    """The twin on PyTorch, with the weights in a file."""

    def __init__(self, model, ranks):
        import torch
        from backbone_twins import twin_of

        self.torch = torch
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        twin = twin_of(model, CASES[model][1]).train()
        self.trained, self.emb_dim = list(twin.parameters()), 128 if model == "GlyphNet" else 512
        with np.load(os.environ["WEIGHTS"]) as weights, torch.no_grad():
            assert len(weights.files) == len(self.trained)
            for parameter, name in zip(self.trained, weights.files):
                assert parameter.shape == weights[name].shape, (parameter.shape, weights[name].shape)
                parameter.copy_(torch.from_numpy(weights[name]))
        self.network = twin
        if ranks > 1:
            torch.distributed.init_process_group("gloo")
            self.network = torch.nn.parallel.DistributedDataParallel(twin)
        self.optimizer = torch.optim.SGD(self.trained, RATE, MOMENTUM, weight_decay=DECAY)

    def arrays(self, of_gradients):
        for parameter in self.trained:
            yield (parameter.grad if of_gradients else parameter.detach()).numpy()

    def backward(self, images, gradient):
        embedding = self.network(self.torch.from_numpy(images))
        embedding.backward(self.torch.from_numpy(gradient))
        return embedding.detach().numpy()

    def update(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def operations(self, images):
        """Floating-point operations of the convolutions and linear layers in a step: forward and two gradients each."""
        counts, kinds = [], (self.torch.nn.Conv2d, self.torch.nn.Linear)

        def count(layer, _inputs, output):
            counts.append(3 * 2 * output.numel() * layer.weight[0].numel())

        hooks = [one.register_forward_hook(count) for one in self.network.modules() if isinstance(one, kinds)]
        self.network(self.torch.from_numpy(images))
        for hook in hooks:
            hook.remove()
        return sum(counts)

    def product(self, size):
        matrix = self.torch.ones(size, size)
        return lambda: matrix @ matrix


def product_rate(side, size=1024):
    """GFLOP/s of a thread in a matrix product, the best of ten; in CPU time, which others on the machine do not use."""
    product, best = side.product(size), float("inf")
    for _ in range(10):
        began = time.process_time()
        product()
        best = min(best, time.process_time() - began)
    return 2 * size**3 / best / 1e9


def serve(options):
    """Does what the lines on stdin say, and answers each with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    side = (PaddleSide if options.side == "paddle" else TorchSide)(options.model, options.ranks_here)
    images, gradient = inputs_of(options.model, side.emb_dim)
    if options.side == "paddle" and os.environ["PADDLE_TRAINER_ID"] == "0":
        side.save_weights(os.environ["WEIGHTS"])
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        what, _, value = line.strip().partition(" ")
        answer = {}
        if what == "compare":
            np.savez(value, side.backward(images, gradient), *side.arrays(True))
            side.update()
        elif what == "product":
            answer["rate"] = product_rate(side)
        elif what == "operations":
            answer["operations"] = side.operations(images)
        else:
            seconds, cpu = time.perf_counter(), time.process_time()
            for _ in range(int(value)):
                side.backward(images, gradient)
                side.update()
            answer = {"seconds": time.perf_counter() - seconds, "cpu_seconds": time.process_time() - cpu}
            answer = {name: number / int(value) for name, number in answer.items()}
        print(json.dumps(answer), file=answers, flush=True)


class Ranks:
    """The processes of one side."""

    def __init__(self, python, side, model, ranks, variables):
        from plsc.machine.launch.network import reserved_ports  # not at the top: PyTorch's environment has no Paddle

        with reserved_ports(ranks) as ports:
            pass  # the ranks take them when they start
        endpoints = [f"127.0.0.1:{port}" for port in ports]
        command = [python, __file__, "--side", side, "--model", model, "--ranks-here", str(ranks)]
        self.processes = []
        for rank in range(ranks):
            environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "3"}
            environment.update(PADDLE_TRAINER_ID=str(rank), PADDLE_TRAINERS_NUM=str(ranks))
            environment.update(PADDLE_TRAINER_ENDPOINTS=",".join(endpoints), PADDLE_CURRENT_ENDPOINT=endpoints[rank])
            environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(ports[0]), RANK=str(rank))
            environment.update(WORLD_SIZE=str(ranks))
            self.processes.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
                )
            )
        self.answers()

    def ask(self, text):
        """Has all ranks do something; returns their answers. A `{}` in the text becomes the rank."""
        for number, process in enumerate(self.processes):
            process.stdin.write(text.format(number) + "\n")
            process.stdin.flush()
        return self.answers()

    def answers(self):
        return [json.loads(process.stdout.readline()) for process in self.processes]

    def end(self):
        for process in self.processes:
            process.stdin.close()
            process.wait()


def difference(ours, theirs):
    """The largest difference of embeddings, and of gradients, relative to the largest element of each tensor."""
    with np.load(ours) as one, np.load(theirs) as other:
        parts = [float(np.abs(one[n] - other[n]).max() / (np.abs(other[n]).max() + 1e-12)) for n in one.files]
        whole = [np.concatenate([file[n].ravel() for n in file.files[1:]]).astype("float64") for file in (one, other)]
    apart = float(np.linalg.norm(whole[0] - whole[1]) / np.linalg.norm(whole[1]))
    return {"embeddings": parts[0], "gradients": apart}


def measure(options, model, threads, ranks, tuned):
    """The result of one case."""
    batch = CASES[model][0]
    with tempfile.TemporaryDirectory() as folder:
        variables = {"OMP_NUM_THREADS": str(threads), "WEIGHTS": f"{folder}/weights.npz", **(MALLOC if tuned else {})}
        # plsc takes a 1 for Paddle's default, not for a choice, and divides the cores by the ranks of the machine.
        variables["PADDLE_LOCAL_SIZE"] = str(max(1, len(os.sched_getaffinity(0)) // threads))
        pythons = {"paddle": sys.executable, "torch": options.torch_python}
        sides = {name: Ranks(python, name, model, ranks, variables) for name, python in pythons.items()}
        for name, side in sides.items():
            side.ask(f"compare {folder}/{name}.{{}}.npz")
        apart = difference(f"{folder}/paddle.0.npz", f"{folder}/torch.0.npz")
        best = {name: {} for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                answers = side.ask(f"steps {options.steps}")
                now = {key: max(answer[key] for answer in answers) for key in answers[0]}
                best[name] = {key: min(value, best[name].get(key, value)) for key, value in now.items()}
        operations = sides["torch"].ask("operations")[0]["operations"] / 1e9
        rate = max(side.ask("product")[0]["rate"] for side in sides.values())
        for side in sides.values():
            side.end()
    result = {"model": model, "batch": batch, "threads": threads, "ranks": ranks}
    result.update(malloc="tuned" if tuned else "as is", difference=rounded(apart))
    result.update(rounded({"product_gflops_of_a_thread": rate}))
    for name in sides:
        speed = {f"images_per_{key[:-1]}": batch / value for key, value in best[name].items()}
        share = operations / best[name]["cpu_seconds"] / rate
        result[name] = rounded({**speed, "share_of_product_rate": share})
    result["ratio"] = rounded({key: best["torch"][key] / best["paddle"][key] for key in best["torch"]})
    return result


def rounded(values):
    return {name: float(f"{value:.3g}") for name, value in values.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--malloc", nargs="+", choices=["as is", "tuned"], default=["as is", "tuned"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--side", choices=["paddle", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--ranks-here", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options)
        return
    from plsc.machine import processor

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    instructions = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "unknown")
    print(json.dumps({"command": " ".join(sys.argv), "processor": processor.name(), "instructions": instructions}))
    for model in options.models:
        for ranks in options.ranks:
            for threads in options.threads:
                for malloc in options.malloc:
                    print(json.dumps(measure(options, model, threads, ranks, malloc == "tuned")), flush=True)


if __name__ == "__main__":
    main()
