"""The clipped sum of per-record gradients: what DP-SGD adds its noise to, computed in one of four ways.

Whatever the way, what the guarantee rests on holds by construction and not because a task is well written:

- A record's loss is computed from that record alone (`loss`), so that no normaliser over a batch and no class weight
  can raise what one record adds.
- Gradients reach parameters only through the model's outputs. A term that a loss adds on parameters has no effect; it
  cannot bypass clipping.
- Every record's gradient is clipped by min(1, C / (norm + 1e-6)), in one place (`clipping`), with its norm over all
  trained parameters taken of the very numbers that are summed, or rounded up (`shares`). A record whose norm is not
  finite adds nothing.
- Every trained parameter has gradients from each part of a batch, or the mode says that it has none; a missing one is
  an error (`mode`).
- Noise is added once a step, to empty batches too, and sums are divided by what is public (`optimizer`).

The ways, each a gradient-sample mode in the sense of Opacus: `bookkeeping`, `vmap` and `autograd` (`single`) are ours,
`hooks` and `functorch` Opacus's own (`opacus_modes`). `choice` picks one that does what autograd does (`comparison`),
and says why.
"""
