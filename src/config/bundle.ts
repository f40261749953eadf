import canonicalize from 'canonicalize';
import { toTimestamp } from '../clock';
import { type ErrorDetails, fail } from '../errors';
import { MAX_DEPTH } from '../http/json-body';
import { fieldName } from '../http/text';
import type { ConfigEntity } from './config.entity';

/** Everything of a bundle but its signature. */
export type UnsignedBundle = Omit<ConfigEntity, 'kid' | 'signature'>;

/** A value as RFC 8785 writes it: one text for one value, so that a signature over it can be checked anywhere. */
export function canonicalText(value: object): string {
  return canonicalize(value) as string;
}

/** What is signed: the canonical form of `{revision, seq, issued_at, expires_at, config}`. */
export function signedText(bundle: UnsignedBundle): string {
  return canonicalText({
    revision: bundle.revision,
    seq: bundle.seq,
    issued_at: toTimestamp(bundle.issued_at),
    expires_at: toTimestamp(bundle.expires_at),
    config: JSON.parse(bundle.config),
  });
}

/** A bundle as agents get it. The configuration goes in as the text it was signed as. */
export function bundleText(bundle: UnsignedBundle & Pick<ConfigEntity, 'signature'>): string {
  const { revision, seq, issued_at, expires_at, signature } = bundle;
  const front = { revision, seq, issued_at: toTimestamp(issued_at), expires_at: toTimestamp(expires_at) };
  return `${JSON.stringify(front).slice(0, -1)},"config":${bundle.config},"signature":${JSON.stringify(signature)}}`;
}

/** How large a configuration may be as canonical JSON, in bytes: every agent fetches it. */
const MAX_CONFIG_BYTES = 1_048_576;

/** A configuration that is wrong all over is answered with the first of its problems. */
const MAX_PROBLEMS = 50;

/**
 * A configuration as it is signed and stored.
 * @throws ERR_VALIDATION it is too large, or another JSON library could read some of it differently: each such field is
 *   named, for such a thing must not be signed
 */
export function acceptConfig(config: object): string {
  const problems: ErrorDetails = {};
  inspect(config, 'config', 1, problems);
  if (Object.keys(problems).length > 0) throw fail('ERR_VALIDATION', problems);
  const text = canonicalText(config);
  const bytes = Buffer.byteLength(text);
  if (bytes > MAX_CONFIG_BYTES)
    throw fail('ERR_VALIDATION', {
      config: `must be at most ${MAX_CONFIG_BYTES} bytes as canonical JSON, and has ${bytes}`,
    });
  return text;
}

function inspect(value: unknown, path: string, depth: number, problems: ErrorDetails): void {
  if (typeof value === 'string') {
    if (!value.isWellFormed()) refuse(problems, path, 'must not hold half of a surrogate pair');
  } else if (typeof value === 'number') {
    if (!Number.isFinite(value)) refuse(problems, path, 'must be a finite number');
    else if (Number.isInteger(value) && !Number.isSafeInteger(value))
      refuse(
        problems,
        path,
        'must be an integer between -(2^53 - 1) and 2^53 - 1; write a larger one as a string',
      );
  } else if (typeof value === 'object' && value !== null) {
    if (depth > MAX_DEPTH) {
      refuse(problems, 'config', `must not nest deeper than ${MAX_DEPTH}`);
      return;
    }
    for (const [name, member] of Object.entries(value)) {
      const at = `${path}.${name}`;
      if (name.isWellFormed()) inspect(member, at, depth + 1, problems);
      else refuse(problems, at, 'must not have half of a surrogate pair in its name');
    }
  }
}

function refuse(problems: ErrorDetails, at: string, problem: string): void {
  if (Object.keys(problems).length < MAX_PROBLEMS) problems[fieldName(at)] = problem;
}
