//! nginx as a lab starts it: in the foreground, with all its files in the lab.

use std::ffi::OsString;

use anyhow::Result;

use crate::Lab;

/// Arguments of an nginx with these lines at the top of its configuration, `events` among them, and these in `http`.
pub fn args(lab: &Lab, main: &str, http: &str) -> Result<[OsString; 4]> {
    let dir = lab.subdir("nginx")?;
    let dir = dir.display();
    let config = format!(
        "user root;
daemon off;
pid {dir}/pid;
{main}
http {{
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/temp;
  fastcgi_temp_path {dir}/fastcgi;
  scgi_temp_path {dir}/scgi;
  uwsgi_temp_path {dir}/uwsgi;
  {http}
}}
"
    );
    let config = lab.write("nginx/nginx.conf", &config)?;
    Ok(["-c".into(), config.into(), "-e".into(), "stderr".into()])
}
