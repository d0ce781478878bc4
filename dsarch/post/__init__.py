"""Post-training: fine-tuning, rewards, preferences, GRPO, distillation.

Losses are functions of log-probabilities, masks and rewards; the loops that
feed them stand apart in :mod:`dsarch.post.loop`.
"""
