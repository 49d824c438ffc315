"""What a training may have besides: distillation, 8 bits, averaged weights."""
