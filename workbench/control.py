"""Clients for what is asked beside the load, and the certificates that both trust."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import httpx

from workbench.errors import ParameterError

_CA_FILE, _CA_FOLDER = "SSL_CERT_FILE", "SSL_CERT_DIR"
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
"""OpenSSL's codes for a chain that ends at nobody whom we know (X509_V_ERR_...)."""
_API_PATH = re.compile(r"(/v1(/chat)?(/completions|/models)?|/metrics)$")


def control_client(
    timeout_s: float = 10.0, *, headers: Mapping[str, str] | None = None
) -> httpx.AsyncClient:
    """An httpx client that heeds no proxy variables; use it as a context manager.

    `headers` go with every request: a key, to the servers that it is for and to no others.
    """
    return httpx.AsyncClient(
        timeout=timeout_s, trust_env=False, verify=control_context(), headers=headers
    )


def control_context() -> ssl.SSLContext:
    """What control calls trust: `tls_context`, or nobody where that leads nowhere.

    A server without TLS is asked all the same.
    """
    try:
        return tls_context()
    except ParameterError:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def tls_context() -> ssl.SSLContext:
    """What load and control calls trust: SSL_CERT_FILE or SSL_CERT_DIR, as curl and OpenSSL do.

    Without them certifi's list and the system's own. Read once: it takes 50 ms of CPU, in which
    the caller's loop stands still. Raises ParameterError where a variable names no certificates.
    """
    return _context(os.environ.get(_CA_FILE, ""), os.environ.get(_CA_FOLDER, ""))


@cache
def _context(file: str, folder: str) -> ssl.SSLContext:
    if not file and not folder:
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()
        return context
    for name, given, known in (
        (_CA_FILE, file, Path(file).is_file()),
        (_CA_FOLDER, folder, Path(folder).is_dir()),
    ):
        if given and not known:
            kind = "file" if name == _CA_FILE else "folder"
            raise ParameterError(
                f"{name} in the environment is {given!r}: there is no such {kind}; correct it, e.g."
                f" export {_CA_FILE}=/etc/my-ca.pem, or unset it"
            )
    try:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    except OSError as error:
        raise ParameterError(
            f"{_CA_FILE} in the environment is {file!r}: it has no certificate that can be read"
            f" ({error}); give a PEM file, e.g. export {_CA_FILE}=/etc/my-ca.pem"
        ) from error


def connect_problem(error: BaseException) -> str:
    """Why no TLS connection came about and what to do; empty where TLS was not the reason."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        todo = (
            f"name the file of the authority that signed it, e.g. export {_CA_FILE}=/etc/my-ca.pem"
            if cause.verify_code in _UNKNOWN_AUTHORITY
            else "write the address with the name that it is for, or renew it"
        )
        return f"its certificate is not trusted ({cause.verify_message.rstrip('.')}); {todo}"
    if isinstance(cause, ssl.SSLError):
        return (
            f"it does not speak TLS as we do ({cause.reason}); if it is a server without TLS,"
            " write its address with http://"
        )
    return ""


def server_address(url: str) -> str:
    """The address of a server, also where a path of the API or a slash stands behind it."""
    return _API_PATH.sub("", url.strip().rstrip("/")).rstrip("/")
