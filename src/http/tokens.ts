import { hash, randomBytes, scrypt, timingSafeEqual } from 'node:crypto';
import { crc32 } from 'node:zlib';

/** The prefix of an agent's token, an operator's token, or an enrollment token. */
export type TokenPrefix = 'dcpa_' | 'dcpo_' | 'dcpe_';

/** The longest lifetime of a token that an operator creates, in seconds: ten years. */
export const MAX_TOKEN_LIFETIME_S = 3_650 * 86_400;

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const SECRET_BYTES = 32;
const SECRET_LENGTH = 43;
const CHECKSUM_LENGTH = 6;

function base62(value: bigint, length: number): string {
  let rest = value;
  let text = '';
  while (text.length < length) {
    text = ALPHABET[Number(rest % 62n)] + text;
    rest /= 62n;
  }
  return text;
}

const checksum = (text: string): string => base62(BigInt(crc32(text)), CHECKSUM_LENGTH);

/** Creates a token of 256 random bits, with a checksum that reveals typos without a query. */
export function mintToken(prefix: TokenPrefix): string {
  const text = prefix + base62(BigInt(`0x${randomBytes(SECRET_BYTES).toString('hex')}`), SECRET_LENGTH);
  return text + checksum(text);
}

/** Whether a text has the form of one of our tokens and a valid checksum. */
export function isWellFormed(prefix: TokenPrefix, token: string): boolean {
  if (token.length !== prefix.length + SECRET_LENGTH + CHECKSUM_LENGTH || !token.startsWith(prefix))
    return false;
  return (
    /^[0-9A-Za-z]+$/.test(token.slice(prefix.length)) &&
    checksum(token.slice(0, -CHECKSUM_LENGTH)) === token.slice(-CHECKSUM_LENGTH)
  );
}

/** The tokens of agents imported from the original control plane: random UUIDs. */
const IMPORTED = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

/** Whether a token has the form of the original control plane's. */
export const isImportedToken = (token: string): boolean => IMPORTED.test(token);

/** Whether a text can be an agent's token, so that it is worth a query. */
export const isAgentToken = (token: string): boolean =>
  isWellFormed('dcpa_', token) || isImportedToken(token);

/** Hashes a token for storage: SHA-256 in hex. A plain hash is enough, because 256 random bits can't be guessed. */
export function hashToken(token: string): string {
  return hash('sha256', token, 'hex');
}

const HASH_LENGTH = 64;
/** Buffers for comparing two hashes, allocated once because every agent's call compares several. */
const LEFT = Buffer.alloc(HASH_LENGTH);
const RIGHT = Buffer.alloc(HASH_LENGTH);

/** Compares two hashes in constant time. */
export function sameHash(a: string, b: string): boolean {
  if (a.length !== b.length) return false;
  if (a.length !== HASH_LENGTH) return timingSafeEqual(Buffer.from(a), Buffer.from(b));
  LEFT.write(a);
  RIGHT.write(b);
  return timingSafeEqual(LEFT, RIGHT);
}

/** Costs 32 MiB and about 200 ms of one core. Source: OWASP's Password Storage Cheat Sheet, scrypt. */
const SCRYPT = { N: 2 ** 15, r: 8, p: 3, maxmem: 64 * 1024 * 1024 };
const SLOW_HASH = /^scrypt\$([\w-]+)\$([\w-]+)$/;

/**
 * Hashes a secret that a person chose, which can be guessed, for storage: `scrypt$salt$key`. It runs outside the event loop;
 * the caller must limit how often clients can cause it.
 */
export async function hashSecret(secret: string, salt = randomBytes(16)): Promise<string> {
  const key = await new Promise<Buffer>((resolve, reject) => {
    scrypt(secret, salt, 32, SCRYPT, (error, derived) => (error ? reject(error) : resolve(derived)));
  });
  return `scrypt$${salt.toString('base64url')}$${key.toString('base64url')}`;
}

/** Whether a stored hash is of this secret. Takes as long as {@link hashSecret}. */
export async function isHashOf(stored: string, secret: string): Promise<boolean> {
  const salt = SLOW_HASH.exec(stored)?.[1];
  return salt !== undefined && sameHash(stored, await hashSecret(secret, Buffer.from(salt, 'base64url')));
}
