"""Planning: time, memory and disk of a training run or an index build, predicted before it starts."""
