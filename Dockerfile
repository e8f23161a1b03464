# The read-only app, for a public demo: no GPU, no torch, an unprivileged user (docs/hosting.md).
FROM python:3.12-slim

WORKDIR /srv/immunelab
COPY requirements.txt .
RUN pip install --no-cache-dir --requirement requirements.txt
COPY . .

RUN useradd --uid 1000 reader && install --directory --owner=reader /srv/lab
USER 1000
ENV IMMUNELAB_READ_ONLY=1 IMMUNELAB_HOME=/srv/lab HOME=/srv/lab PYTHONDONTWRITEBYTECODE=1

EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "immunelab", "app", "--read-only", "--address", "0.0.0.0"]
CMD ["--port", "8501"]
