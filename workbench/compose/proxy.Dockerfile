# The PD proxy with the packages that it imports, without vLLM or torch. Build context: the package.
ARG PYTHON_IMAGE=python:3.13-slim
FROM ${PYTHON_IMAGE}
RUN python3 -m pip install --no-cache-dir --target /opt/packages aiohttp orjson uvloop
COPY . /opt/workbench/workbench
ENV PYTHONPATH=/opt/workbench:/opt/packages PYTHONDONTWRITEBYTECODE=1
USER 65534
ENTRYPOINT ["python", "-m", "workbench.serve.proxy.proxy"]
