//! nginx as a caching proxy before the registry, as Debian configures it.

use std::net::SocketAddr;

use anyhow::Result;
use darter_integration::{Lab, Process, Program, nginx::args, process::free_address};

pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
}

impl Nginx {
    pub(crate) async fn start(lab: &Lab, registry: &str) -> Result<Self> {
        let address = free_address()?;
        let cache = lab.subdir("nginx/cache")?;
        let http = http(&cache.display().to_string(), address, registry);
        // As in Debian's nginx.conf.
        let main = "worker_processes auto;\nevents { worker_connections 768; }";
        let program = Program::new("nginx", "nginx").args(args(lab, main, &http)?);
        let mut process = Process::start(lab, program)?;
        process.until_http(&format!("http://{address}/v2/")).await?;
        Ok(Self { address, process })
    }
}

/// What matters for speed (`sendfile`, `tcp_nopush`, workers) is as in Debian's nginx.conf, but for the access log.
fn http(cache: &str, address: SocketAddr, registry: &str) -> String {
    format!(
        "access_log off;
  proxy_cache_path {cache} keys_zone=blobs:10m max_size=10g use_temp_path=off;
  server {{
    listen {address};
    location / {{
      proxy_pass {registry};
      proxy_cache blobs;
      proxy_cache_lock on;
      proxy_cache_lock_timeout 5m;
      proxy_cache_valid 200 1h;
    }}
  }}"
    )
}
