"""Learning from rewards and rankings: losses of arrays, reward models, rollouts."""
