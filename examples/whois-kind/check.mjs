// The agent's side of the kind: queries a whois server over TCP (RFC 3912). node examples/agent.mjs --check
//   examples/whois-kind/check.mjs
import { connect } from 'node:net';

const TIMEOUT_MS = 10_000;
const MAX_BYTES = 256 * 1024;

/** Sends the domain and reads until the server closes. */
function ask(host, port, domain) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    let bytes = 0;
    const socket = connect({ host, port }, () => socket.write(`${domain}\r\n`));
    const overdue = setTimeout(() => {
      socket.destroy(Object.assign(new Error('no answer in time'), { code: 'ETIMEDOUT' }));
    }, TIMEOUT_MS);
    socket
      .on('data', (chunk) => {
        chunks.push(chunk);
        bytes += chunk.length;
        if (bytes > MAX_BYTES) socket.destroy(new Error('the answer is too long'));
      })
      .on('error', reject)
      .on('end', () => resolve(Buffer.concat(chunks).toString('utf8')))
      .on('close', () => clearTimeout(overdue));
  });
}

/** Finds the values of a field under any of the names that registries use. */
function valuesOf(text, ...names) {
  return [
    ...text.matchAll(new RegExp(`^[ \\t]*(?:${names.join('|')}):[ \\t]*(\\S.*?)[ \\t\\r]*$`, 'gim')),
  ].map((match) => match[1]);
}

/** Checks a domain. The failure of a server is a finding too. */
async function whois({ domain, server }) {
  const [host, port = 43] = (server ?? 'whois.iana.org').split(':');
  const startedAt = performance.now();
  const rtt = () => ({ name: 'rtt_ms', value: Math.round(performance.now() - startedAt), unit: 'ms' });
  try {
    const text = await ask(host, Number(port), domain);
    const [registrar] = valuesOf(text, 'registrar', 'sponsoring registrar');
    const [expiry] = valuesOf(
      text,
      'registry expiry date',
      'registrar registration expiration date',
      'paid-till',
    );
    const name_servers = valuesOf(text, 'name server', 'nserver').map((value) =>
      value.split(/\s/)[0].toLowerCase(),
    );
    const observations = [
      rtt(),
      { name: 'registered', value: registrar !== undefined || name_servers.length > 0 },
    ];
    if (registrar !== undefined) observations.push({ name: 'registrar', value: registrar });
    if (!Number.isNaN(Date.parse(expiry)))
      observations.push({ name: 'expires_at', value: new Date(expiry).toISOString() });
    if (name_servers.length > 0) observations.push({ name: 'name_servers', value: name_servers });
    return { outcome: 'success', observations };
  } catch (error) {
    const outcome = error.code === 'ETIMEDOUT' ? 'timeout' : 'error';
    return { outcome, observations: [rtt(), { name: 'error', value: error.code ?? error.message }] };
  }
}

export default { whois };
