from fastbp.core._generic import *  # one source, other flags
