# swarmctl as an image: the one-file binary (`make binary`) on a small Debian.
# `make image` builds it, with a base made on the spot where no registry is in reach.
#
#   docker run -v swarmctl:/var/lib/swarmctl -p 7077:7077 swarmctl/swarmctl \
#     controller --listen tcp://0.0.0.0:7077 --advertise tcp://HOST:7077
#   docker run --network host -v swarmctl-agent:/var/lib/swarmctl -v join.token:/join.token \
#     -v /var/run/docker.sock:/var/run/docker.sock swarmctl/swarmctl agent --join /join.token
ARG BASE=debian:12-slim
FROM ${BASE}
# The binary brings all but libvirt's own library, which an agent with VMs uses.
RUN ls /usr/lib/*/libvirt.so.0 >/dev/null 2>&1 \
  || { apt-get update && apt-get install -y --no-install-recommends libvirt0 \
    && rm -rf /var/lib/apt/lists/*; }
COPY dist/swarmctl /usr/local/bin/swarmctl
VOLUME /var/lib/swarmctl
EXPOSE 7077
ENTRYPOINT ["swarmctl"]
CMD ["--help"]
