from trainer import *
