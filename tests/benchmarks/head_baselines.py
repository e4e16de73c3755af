"""Dense sharded arcface heads of the usual kind, in PyTorch and in Paddle: what the head is measured against.

Normalise W, multiply, clamp, margin, softmax over the ranks with the largest logit taken off, autograd, SGD with
momentum and weight decay. Sampled: random numbers for all rows, the largest of them chosen, W indexed, a dense gradient
of W.
"""

import math

MARGIN, SCALE, RATE, MOMENTUM, DECAY = 0.5, 64.0, 0.1, 0.9, 5e-4
COS_M, SIN_M = math.cos(MARGIN), math.sin(MARGIN)


class TorchHead:
    """`rows` rows of W on this rank, beginning with class `lower`."""

    def __init__(self, rows, emb_dim, lower, ratio, world):
        import torch

        self.torch, self.lower, self.rows, self.ratio, self.world = torch, lower, rows, ratio, world
        self.weight = torch.nn.Parameter(torch.randn(rows, emb_dim).mul_(0.01))
        self.optimizer = torch.optim.SGD([self.weight], RATE, MOMENTUM, weight_decay=DECAY)
        self.loss_function = _torch_softmax(torch, world)

    def step(self, embedding, label):
        """One step on this rank's batch [b, D], [b] (NumPy); returns the loss."""
        torch = self.torch
        own = torch.from_numpy(embedding).requires_grad_()
        label = torch.from_numpy(label)
        if self.world > 1:
            parts = [torch.empty_like(own) for _ in range(self.world)]
            torch.distributed.all_gather(parts, own.detach())
            labels = [torch.empty_like(label) for _ in range(self.world)]
            torch.distributed.all_gather(labels, label)
            everything, label = torch.cat(parts).requires_grad_(), torch.cat(labels)
        else:
            everything = own
        column = label - self.lower
        column[(column < 0) | (column >= self.rows)] = -1
        weight = self.weight
        if self.ratio < 1:
            positives = torch.unique(column[column >= 0])
            chance = torch.rand(self.rows)
            chance[positives] = 2.0
            index = torch.topk(chance, max(len(positives), int(self.ratio * self.rows))).indices.sort().values
            known = column >= 0
            column[known] = torch.searchsorted(index, column[known])
            weight = weight[index]
        normalize = torch.nn.functional.normalize
        logits = (normalize(everything) @ normalize(weight).t()).clamp(-1, 1)
        mine = torch.nonzero(column >= 0).squeeze(1)
        target = logits[mine, column[mine]]
        sine = torch.sqrt(1.0 - target * target)
        moved = torch.where(target > -COS_M, target * COS_M - sine * SIN_M, target - MARGIN * SIN_M)
        logits = logits.index_put((mine, column[mine]), moved) * SCALE
        loss = self.loss_function(logits, column)
        self.optimizer.zero_grad()
        loss.backward()
        if self.world > 1:
            torch.distributed.all_reduce(everything.grad)
        self.optimizer.step()
        return float(loss.detach())


def _torch_softmax(torch, world):
    def reduce(tensor, operation):
        if world > 1:
            torch.distributed.all_reduce(tensor, operation)
        return tensor

    class DistributedSoftmax(torch.autograd.Function):
        @staticmethod
        def forward(context, logits, column):
            operations = torch.distributed.ReduceOp
            largest = reduce(logits.max(dim=1, keepdim=True).values, operations.MAX)
            logits = logits.sub(largest).exp_()
            logits.div_(reduce(logits.sum(1, keepdim=True), operations.SUM))
            mine = torch.nonzero(column >= 0).squeeze(1)
            probability = torch.zeros(len(column))
            probability[mine] = logits[mine, column[mine]]
            context.save_for_backward(logits, column)
            return reduce(probability, operations.SUM).clamp_min(1e-30).log().mean().neg()

        @staticmethod
        def backward(context, by_loss):
            logits, column = context.saved_tensors
            mine = torch.nonzero(column >= 0).squeeze(1)
            logits[mine, column[mine]] -= 1.0
            return logits.div_(len(column)).mul_(by_loss), None

    return DistributedSoftmax.apply


class PaddleHead:
    """The same in Paddle."""

    def __init__(self, rows, emb_dim, lower, ratio, world):
        import paddle

        assert ratio == 1, "the sampled baseline is in PyTorch only"
        self.paddle, self.lower, self.rows, self.world = paddle, lower, rows, world
        normal = paddle.nn.initializer.Normal(0.0, 0.01)
        self.weight = paddle.create_parameter([rows, emb_dim], "float32", default_initializer=normal)
        self.optimizer = paddle.optimizer.Momentum(RATE, MOMENTUM, parameters=[self.weight], weight_decay=DECAY)
        self.loss_function = _paddle_softmax(paddle, world)

    def step(self, embedding, label):
        """One step on this rank's batch [b, D], [b] (NumPy); returns the loss."""
        paddle = self.paddle
        everything, label = paddle.to_tensor(embedding), paddle.to_tensor(label)
        if self.world > 1:
            parts, labels = [], []
            paddle.distributed.all_gather(parts, everything)
            paddle.distributed.all_gather(labels, label)
            everything, label = paddle.concat(parts), paddle.concat(labels)
        everything.stop_gradient = False
        inside = paddle.logical_and(label >= self.lower, label < self.lower + self.rows)
        mine = paddle.nonzero(inside).squeeze(1)
        column = paddle.gather(label, mine) - self.lower
        at = paddle.stack([mine, column], axis=1)
        normalize = paddle.nn.functional.normalize
        logits = paddle.clip(paddle.matmul(normalize(everything), normalize(self.weight), transpose_y=True), -1, 1)
        target = paddle.gather_nd(logits, at)
        sine = paddle.sqrt(1.0 - target * target)
        moved = paddle.where(target > -COS_M, target * COS_M - sine * SIN_M, target - MARGIN * SIN_M)
        logits = paddle.scatter_nd_add(logits, at, moved - target) * SCALE
        loss = self.loss_function(logits, at)
        loss.backward()
        if self.world > 1:
            paddle.distributed.all_reduce(everything.grad)
        self.optimizer.step()
        self.optimizer.clear_grad()
        return float(loss)


def _paddle_softmax(paddle, world):
    def reduce(tensor, operation):
        if world > 1:
            paddle.distributed.all_reduce(tensor, operation)
        return tensor

    class DistributedSoftmax(paddle.autograd.PyLayer):
        @staticmethod
        def forward(context, logits, at):
            operations = paddle.distributed.ReduceOp
            largest = reduce(logits.max(axis=1, keepdim=True), operations.MAX)
            share = paddle.exp(logits - largest)
            share = share / reduce(share.sum(axis=1, keepdim=True), operations.SUM)
            probability = paddle.zeros([logits.shape[0]])
            probability = paddle.scatter(probability, at[:, 0], paddle.gather_nd(share, at))
            context.save_for_backward(share, at)
            return -paddle.log(paddle.clip(reduce(probability, operations.SUM), min=1e-30)).mean()

        @staticmethod
        def backward(context, by_loss):
            share, at = context.saved_tensor()
            share = paddle.scatter_nd_add(share, at, -paddle.ones([at.shape[0]]))
            return share * (by_loss / share.shape[0]), None

    return DistributedSoftmax.apply
