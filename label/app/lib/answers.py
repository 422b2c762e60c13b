"""What a client sees of an error: its reason, instead of "Internal Server Error"."""

from __future__ import annotations

from fastapi import FastAPI
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from starlette.requests import Request
from starlette.responses import JSONResponse

from monai_unet.data import InputError

#: of MONAI Label: the request names an image, a label, a model or a strategy that there is not
UNKNOWN = (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR, MONAILabelError.APP_ERROR)


def root_cause(error: BaseException) -> BaseException:
    """The error that MONAI's parser and transforms have wrapped; of an `InputError` the cause is of less use."""
    while error.__cause__ is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def sentence(error: BaseException) -> str:
    """The reason in words."""
    error = root_cause(error)
    return str(getattr(error, "msg", error)) or type(error).__name__  # MONAI Label's errors have no text but msg


def answer_with_reasons(server: FastAPI) -> None:
    """Answer errors with ``{"detail": reason}``: 404 for what is not there, 422 for bad data, 500 for anything else."""

    def answer(request: Request, error: Exception) -> JSONResponse:
        cause, status = root_cause(error), 500
        if isinstance(cause, InputError):
            status = 422
        elif isinstance(cause, MONAILabelException) and cause.error in UNKNOWN:
            status = 404
        return JSONResponse({"detail": sentence(cause)}, status)

    server.add_exception_handler(Exception, answer)
    server.middleware_stack = None  # which Starlette then builds anew, with this handler
