// Verifies a configuration bundle as an agent does. Prints the configuration, or why it must not be used.
//   curl -s $URL/.well-known/jwks.json > control-plane.keys.json     once, over a trusted channel: these keys are pinned
//   curl -s $URL/config -H ... | node examples/verify-config.mjs --keys control-plane.keys.json --state control-plane.last-config.json
// --keys: a JWK set, or one JWK. --state: the last accepted bundle; created with the first.
import { text } from 'node:stream/consumers';
import { parseArgs } from 'node:util';
import { acceptBundle } from './config-bundle.mjs';

try {
  const { values: options } = parseArgs({ options: { keys: { type: 'string' }, state: { type: 'string' } } });
  if (!options.keys || !options.state) throw new Error('--keys FILE and --state FILE are needed');
  const config = acceptBundle(JSON.parse(await text(process.stdin)), options.keys, options.state);
  console.log(JSON.stringify(config, null, 2));
} catch (error) {
  console.error(`The configuration must not be used: ${error.message}.`);
  process.exitCode = 1;
}
