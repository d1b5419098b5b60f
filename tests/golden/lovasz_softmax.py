"""The numbers of LossTest.LovaszMatchesItsPaper (tests/losses/test_loss.cpp): the Lovasz-Softmax loss of a few pixels in
float64, from the definition in Berman, Rannen Triki, Blaschko (2018) alone, and its gradient by the logits.

    python3 tests/golden/lovasz_softmax.py
"""

import itertools

import numpy as np


def jaccard(wrong, truth):
    """The Jaccard loss of a class where the pixels of the set `wrong` are: |wrong| over the union of truth and wrong."""
    union = np.count_nonzero(truth | wrong)
    return np.count_nonzero(wrong) / union if union else 0.0


def extension(errors, truth):
    """The sum over ranks of error times what the set loss grows by as the pixel of that rank joins."""
    value, wrong, before = 0.0, np.zeros_like(truth), 0.0
    for i in sorted(range(len(errors)), key=lambda i: -errors[i]):  # stable
        wrong[i] = True
        now = jaccard(wrong, truth)
        value, before = value + errors[i] * (now - before), now
    return value


def lovasz_softmax(logits, labels, present):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    losses = [extension(np.abs((labels == c) - p[:, c]), labels == c)
              for c in range(logits.shape[1]) if not present or (labels == c).any()]
    return np.mean(losses)


def gradient(loss, x, step=1e-6):
    g = np.zeros_like(x)
    for at in itertools.product(*map(range, x.shape)):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        g[at] = (loss(up) - loss(down)) / (2 * step)
    return g


logits = np.array([[1.5, -0.25, 0.5], [0.125, 2.0, -1.0], [-0.5, 0.75, 0.25], [0.0, 1.0, -2.0], [2.5, 0.5, 1.0]])
labels = np.array([0, 1, 1, 0, 0])
for present in (True, False):
    value = lambda x: lovasz_softmax(x, labels, present)
    print("present" if present else "all", repr(float(value(logits))))
    print(np.array2string(gradient(value, logits).ravel(), separator=", ", precision=9, max_line_width=110))
