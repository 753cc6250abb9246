from torch import nn


class QuantizedEmbedding(nn.Module):
    pass


class QuantizedLinear(nn.Module):
    pass


class StaticAttention(nn.Module):
    pass


def refusal(*a):
    return ""


def partitioners():
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]
