from isodet import export as export
from isodet import models as models
from isodet import runtime as runtime
from isodet import trainer as trainer
from isodet.errors import IsodetError as IsodetError
from runtime import *
