"""The clipped sum of per-record gradients, to which DP-SGD adds its noise, computed in one of five modes.

In every mode, the guarantee holds by construction, however a task is written:

- A record's loss is computed from that record alone (`loss`), so no normaliser over a batch and no class weight can
  raise what one record contributes.
- Gradients reach parameters only through the model's outputs. A loss term on parameters has no effect, so it cannot
  bypass clipping.
- Every record's gradient is scaled by min(1, C / (norm + 1e-6)), in one place (`clipping`). Its norm over all trained
  parameters is computed from the numbers that are summed, or rounded up (`record_gradients`). A record whose norm is
  not finite adds nothing.
- Every trained parameter has gradients from each part of a batch, or the mode says that it has none; a missing gradient
  is an error (`mode`).
- Noise is added once per step, also to empty batches, and sums are divided by a public number (`noisy_optimizer`).

Each mode is a gradient-sample mode in the sense of Opacus. `bookkeeping`, `vmap` and `autograd` (`single`) are
Cloister's; `hooks` and `functorch` are Opacus's own (`opacus_modes`). `choice` picks a mode that agrees with autograd
(`comparison`), and says why.
"""
