//! nginx as a caching proxy before the registry, as Debian configures it.

use std::net::SocketAddr;

use anyhow::Result;
use darter_integration::{Lab, Process, Program, process::free_address};

pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
}

impl Nginx {
    pub(crate) async fn start(lab: &Lab, registry: &str) -> Result<Self> {
        let address = free_address()?;
        let dir = lab.subdir("nginx")?;
        let config = lab.write("nginx/nginx.conf", &config(&dir.display().to_string(), address, registry))?;
        let program = Program::new("nginx", "nginx").arg("-c").arg(config).arg("-e").arg("stderr");
        let mut process = Process::start(lab, program)?;
        process.until_http(&format!("http://{address}/v2/")).await?;
        Ok(Self { address, process })
    }
}

/// What matters for speed (workers, `sendfile`, `tcp_nopush`) is as in Debian's nginx.conf, but for the access log.
fn config(dir: &str, address: SocketAddr, registry: &str) -> String {
    format!(
        "user root;
daemon off;
worker_processes auto;
pid {dir}/pid;
events {{ worker_connections 768; }}
http {{
  sendfile on;
  tcp_nopush on;
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/temp;
  fastcgi_temp_path {dir}/fastcgi;
  scgi_temp_path {dir}/scgi;
  uwsgi_temp_path {dir}/uwsgi;
  proxy_cache_path {dir}/cache keys_zone=blobs:10m max_size=10g use_temp_path=off;
  server {{
    listen {address};
    location / {{
      proxy_pass {registry};
      proxy_cache blobs;
      proxy_cache_lock on;
      proxy_cache_lock_timeout 5m;
      proxy_cache_valid 200 1h;
    }}
  }}
}}
"
    )
}
