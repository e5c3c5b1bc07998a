"""The compiled inner loops of store and search.

Stored vectors are 16-bit fixed-point, component-major, [n, C]: one component of all C records is contiguous, so every loop below
runs along the records and needs no horizontal sums. A loop reads two bytes per stored value, which limits its speed at large C.
"""

import numpy as np

from finemoe.compiling import njit

MAP_SCALE = np.float32(1.0 / 65535.0)
EMBEDDING_SCALE = np.float32(1.0 / 32767.0)
_LEAST, _ALL_BUT_ONE, _ALL_BUT_THE_SIGN = -(2**31), np.int32(31), np.int32(2**31 - 1)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def accumulate_dots(codes, weights, size, dots):  # type: ignore[no-untyped-def]
    """dots[c] += sum_j weights[j] * codes[j, c] for the first `size` records; codes [n, C] contiguous, weights [n], dots [C]."""
    num_components = weights.shape[0]
    sums = dots[:size]
    j = 0
    while j + 4 <= num_components:  # four components a pass: a quarter of the memory traffic on the sums
        w0, w1, w2, w3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        if w0 != 0 or w1 != 0 or w2 != 0 or w3 != 0:  # sparse distributions are mostly zeros, which change no bit of the sums
            k0, k1, k2, k3 = codes[j, :size], codes[j + 1, :size], codes[j + 2, :size], codes[j + 3, :size]
            for c in range(size):
                sums[c] += w0 * np.float32(k0[c]) + w1 * np.float32(k1[c]) + w2 * np.float32(k2[c]) + w3 * np.float32(k3[c])
        j += 4
    while j < num_components:
        w0, k0 = weights[j], codes[j, :size]
        for c in range(size):
            sums[c] += w0 * np.float32(k0[c])
        j += 1


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _accumulate_four(codes, weights, size, dots):  # type: ignore[no-untyped-def]
    """Like `accumulate_dots` for four rows, weights [4, n] and dots [4, C], which share reading and conversion. Each row's sums
    have the same order, and hence the same bits."""
    num_components = weights.shape[1]
    s0, s1, s2, s3 = dots[0, :size], dots[1, :size], dots[2, :size], dots[3, :size]
    j = 0
    while j + 4 <= num_components:
        k0, k1, k2, k3 = codes[j, :size], codes[j + 1, :size], codes[j + 2, :size], codes[j + 3, :size]
        a0, a1, a2, a3 = weights[0, j], weights[0, j + 1], weights[0, j + 2], weights[0, j + 3]
        b0, b1, b2, b3 = weights[1, j], weights[1, j + 1], weights[1, j + 2], weights[1, j + 3]
        c0, c1, c2, c3 = weights[2, j], weights[2, j + 1], weights[2, j + 2], weights[2, j + 3]
        d0, d1, d2, d3 = weights[3, j], weights[3, j + 1], weights[3, j + 2], weights[3, j + 3]
        for c in range(size):
            x0, x1, x2, x3 = np.float32(k0[c]), np.float32(k1[c]), np.float32(k2[c]), np.float32(k3[c])
            s0[c] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
            s1[c] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
            s2[c] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
            s3[c] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3
        j += 4
    for row in range(4):
        accumulate_dots(codes[j:], weights[row, j:], size, dots[row])


@njit(cache=True, nogil=True)
def accumulate_dots_of_rows(codes, weights, size, dots):  # type: ignore[no-untyped-def]
    """Like `accumulate_dots` for every row, weights [B, n] and dots [B, C]: the same bits, independent of the other rows."""
    row = 0
    while row + 4 <= weights.shape[0]:
        _accumulate_four(codes, weights[row : row + 4], size, dots[row : row + 4])
        row += 4
    while row < weights.shape[0]:
        accumulate_dots(codes, weights[row], size, dots[row])
        row += 1


@njit(cache=True, nogil=True, fastmath=True)
def nearest_neighbour(dots, inverse_norms, size):  # type: ignore[no-untyped-def]
    """(neighbour, value) of the largest dots[c] * inverse_norms[c]; the first one if several tie.

    Both loops compare integers, which a compiler can vectorise over many records: a floating-point maximum waits for each
    comparison, and a loop that ends at the first match handles one record at a time.
    """
    if not size:
        return 0, np.float32(0.0)
    best, last = np.int32(_LEAST), np.int32(size - 1)
    for c in range(size):
        best = max(best, _ranked(dots[c] * inverse_norms[c]))
    neighbour = last
    for c in range(size):
        neighbour = min(neighbour, np.int32(c) if _ranked(dots[c] * inverse_norms[c]) == best else last)
    return neighbour, dots[neighbour] * inverse_norms[neighbour]


@njit(cache=True, nogil=True)
def _ranked(value):  # type: ignore[no-untyped-def]
    """An integer for a float32 with the same order: its bits, or, for a negative value, whose bits encode its magnitude, minus
    that magnitude."""
    bits = np.float32(value).view(np.int32)
    sign = np.int32(bits >> _ALL_BUT_ONE)  # 0 or -1
    return np.int32(np.int32(bits ^ np.int32(sign & _ALL_BUT_THE_SIGN)) - sign)


@njit(cache=True, nogil=True)
def advance_prefix(codes, probs, dots, squares):  # type: ignore[no-untyped-def]
    """Extend every row's prefix by one layer.

    codes [J, capacity] of that layer, probs [B, J], dots [B, C] and squares [B] in place.
    """
    weights = np.empty(probs.shape, dtype=np.float32)
    for row in range(probs.shape[0]):
        square = np.float32(0.0)
        for j in range(probs.shape[1]):
            weights[row, j] = probs[row, j] * MAP_SCALE
            square += probs[row, j] * probs[row, j]
        squares[row] += square
    accumulate_dots_of_rows(codes, weights, dots.shape[1], dots)


@njit(cache=True, nogil=True)
def nearest_neighbours(dots, inverse_norms, squares, neighbours, scores):  # type: ignore[no-untyped-def]
    """Nearest map and its cosine for every row; dots [B, C], inverse_norms [C], squares [B] -> neighbours [B], scores [B]."""
    for row in range(dots.shape[0]):
        neighbour, value = nearest_neighbour(dots[row], inverse_norms, dots.shape[1])
        neighbours[row] = neighbour
        scores[row] = value / np.sqrt(squares[row]) if squares[row] > 0 else np.float32(0.0)


@njit(cache=True, nogil=True)
def gather_rows(codes, neighbours, rows):  # type: ignore[no-untyped-def]
    """rows[b, j] = codes[j, neighbours[b]] as probabilities; codes [J, C], neighbours [B], rows [B, J]."""
    for b in range(neighbours.shape[0]):
        for j in range(codes.shape[0]):
            rows[b, j] = np.float32(codes[j, neighbours[b]]) * MAP_SCALE


@njit(cache=True, nogil=True)
def follow_prefix(codes, inverse_norms, probs, dots, squares, neighbours, scores):  # type: ignore[no-untyped-def]
    """Nearest map and its cosine for every row after each of some layers, the first ones.

    codes [L, J, capacity], inverse_norms [L, capacity], probs [n, B, J], dots [B, C] and squares [B] in place -> neighbours and
    scores [n, B].
    """
    for layer in range(probs.shape[0]):
        advance_prefix(codes[layer], probs[layer], dots, squares)
        norms = inverse_norms[layer, : dots.shape[1]]
        nearest_neighbours(dots, norms, squares, neighbours[layer], scores[layer])


@njit(cache=True, nogil=True)
def gather_layers(codes, first, neighbours, rows):  # type: ignore[no-untyped-def]
    """Like `gather_rows` for consecutive layers from `first` on; codes [L, J, C], neighbours [n, B], rows [n, B, J]."""
    for layer in range(neighbours.shape[0]):
        gather_rows(codes[first + layer], neighbours[layer], rows[layer])
