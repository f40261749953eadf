import canonicalize from 'canonicalize';
import { toTimestamp } from '../clock';
import { type ErrorDetails, fail } from '../errors';
import { MAX_DEPTH } from '../http/json-body';
import { fieldName } from '../http/text';
import type { ConfigEntity } from './config.entity';

/** Everything of a bundle but its signature. */
export type UnsignedBundle = Omit<ConfigEntity, 'kid' | 'signature'>;

/** Serializes a value by RFC 8785: equal values have equal text, so that any client can verify a signature over it. */
export function canonicalText(value: object): string {
  return canonicalize(value) as string;
}

/** Returns the text to sign: the canonical form of `{revision, seq, issued_at, expires_at, config}`. */
export function signedText(bundle: UnsignedBundle): string {
  return canonicalText({
    revision: bundle.revision,
    seq: bundle.seq,
    issued_at: toTimestamp(bundle.issued_at),
    expires_at: toTimestamp(bundle.expires_at),
    config: JSON.parse(bundle.config),
  });
}

/** Serializes a bundle for agents. The configuration is the stored text itself, so that it is exactly what was signed. */
export function bundleText(bundle: UnsignedBundle & Pick<ConfigEntity, 'signature'>): string {
  const { revision, seq, issued_at, expires_at, signature } = bundle;
  const front = { revision, seq, issued_at: toTimestamp(issued_at), expires_at: toTimestamp(expires_at) };
  return `${JSON.stringify(front).slice(0, -1)},"config":${bundle.config},"signature":${JSON.stringify(signature)}}`;
}

/** The largest configuration as canonical JSON, in bytes. It is limited because every agent fetches it. */
const MAX_CONFIG_BYTES = 1_048_576;

/** How many invalid fields an error names at most. */
const MAX_PROBLEMS = 50;

/**
 * Checks a configuration and serializes it to the canonical JSON that is signed and stored.
 * @throws ERR_VALIDATION it is too large, or JSON libraries could read some fields differently, so that they must not be
 *   signed; the error names them
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
    if (!value.isWellFormed()) addProblem(problems, path, 'must not hold half of a surrogate pair');
  } else if (typeof value === 'number') {
    if (!Number.isFinite(value)) addProblem(problems, path, 'must be a finite number');
    else if (Number.isInteger(value) && !Number.isSafeInteger(value))
      addProblem(
        problems,
        path,
        'must be an integer between -(2^53 - 1) and 2^53 - 1; write a larger one as a string',
      );
  } else if (typeof value === 'object' && value !== null) {
    if (depth > MAX_DEPTH) {
      addProblem(problems, 'config', `must not nest deeper than ${MAX_DEPTH}`);
      return;
    }
    for (const [name, member] of Object.entries(value)) {
      const at = `${path}.${name}`;
      if (name.isWellFormed()) inspect(member, at, depth + 1, problems);
      else addProblem(problems, at, 'must not have half of a surrogate pair in its name');
    }
  }
}

function addProblem(problems: ErrorDetails, at: string, problem: string): void {
  if (Object.keys(problems).length < MAX_PROBLEMS) problems[fieldName(at)] = problem;
}
