"""Files as Caffe writes them, by the rules of protobuf."""

import struct


def varint(value):
    """Seven bits a byte, the lowest first; all bytes but the last have the top bit."""
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    """An integer, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(array, packed=True):
    """A BlobProto: its shape (packed or not), and its numbers."""
    if packed:
        dims = field(1, b"".join(map(varint, array.shape)))
    else:
        dims = b"".join(field(1, dim) for dim in array.shape)
    numbers = struct.pack(f"<{array.size}f", *array.ravel().tolist())
    return field(5, numbers) + field(7, dims)


def layer(name, *blobs):
    """A LayerParameter, with other fields around its name and blobs."""
    other = field(10, 300) + varint(5 << 3 | 5) + struct.pack("<f", 1.0)
    blobs = b"".join(field(7, blob) for blob in blobs)
    return field(100, field(1, name.encode()) + field(2, b"Scale") + other + blobs)


def network(blobs):
    """A NetParameter of the blobs by "layer.index"."""
    layers: dict = {}
    for name, array in blobs.items():
        layers.setdefault(name.rpartition(".")[0], []).append(blob(array))
    begin = field(1, b"a net") + layer("data") + varint(77 << 3 | 1) + bytes(8)
    return begin + b"".join(layer(name, *own) for name, own in layers.items())
