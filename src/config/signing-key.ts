import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { Logger } from '@nestjs/common';
import { CompactSign, calculateJwkThumbprint, exportJWK, type JWK } from 'jose';
import { fileBesideDatabase, isInMemory, type Settings, SettingsError } from '../settings';

const ALGORITHM = 'EdDSA';

/** The Ed25519 key that signs configuration. */
export class SigningKey {
  private constructor(
    private readonly key: KeyObject,
    /** Names the key: its RFC 7638 thumbprint. */
    readonly kid: string,
    /** The public half, for whoever verifies. */
    readonly jwk: JWK,
  ) {}

  /**
   * Reads the key from its file; where that is missing, makes one and leaves it there, readable for the owner only.
   * Beside a database in memory the key lives in memory too, unless the settings name a file.
   * @throws SettingsError the file can't be read or made, or holds no Ed25519 key; the message tells nothing of its content
   */
  static async load(settings: Pick<Settings, 'database' | 'signingKeyFile'>): Promise<SigningKey> {
    if (settings.signingKeyFile === undefined && isInMemory(settings.database))
      return SigningKey.of(generateKeyPairSync('ed25519').privateKey);
    const file = settings.signingKeyFile ?? fileBesideDatabase(settings.database, 'signing-key.pem');
    // A path that was set from outside is not repeated; one that was derived would otherwise have to be guessed.
    const name =
      settings.signingKeyFile === undefined
        ? `The file ${file}`
        : 'The file of CONTROL_PLANE_SIGNING_KEY_FILE';
    return SigningKey.of(readKey(file, name) ?? makeKey(file, name));
  }

  /** Signs a text. @returns the JWS with its payload left out: `header..signature` */
  async sign(payload: string): Promise<string> {
    const jws = await new CompactSign(Buffer.from(payload))
      .setProtectedHeader({ alg: ALGORITHM, kid: this.kid })
      .sign(this.key);
    const [header, , signature] = jws.split('.');
    return `${header}..${signature}`;
  }

  private static async of(key: KeyObject): Promise<SigningKey> {
    const jwk = await exportJWK(createPublicKey(key));
    const kid = await calculateJwkThumbprint(jwk);
    return new SigningKey(key, kid, { ...jwk, kid, alg: ALGORITHM, use: 'sig' });
  }
}

/** @returns undefined where there is no file */
function readKey(file: string, name: string): KeyObject | undefined {
  let pem: string;
  try {
    pem = readFileSync(file, 'utf8');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    throw new SettingsError(
      `${name}, which must hold the key that signs configuration, can't be read (${code}).`,
    );
  }
  let key: KeyObject | undefined;
  try {
    if (pem.includes('-----BEGIN PRIVATE KEY-----')) key = createPrivateKey(pem);
  } catch {
    // The reason could quote the content.
  }
  if (key?.asymmetricKeyType !== 'ed25519') {
    throw new SettingsError(
      `${name} must hold an Ed25519 private key (PEM, PKCS#8, not encrypted), and does not. ` +
        'Put the right one in its place, or move it away to have a new one made.',
    );
  }
  return key;
}

function makeKey(file: string, name: string): KeyObject {
  const { privateKey } = generateKeyPairSync('ed25519');
  try {
    // Exclusive: if another process makes one at this instant, this start fails and the next one reads that.
    const handle = openSync(file, 'wx', 0o600);
    try {
      writeFileSync(handle, privateKey.export({ type: 'pkcs8', format: 'pem' }));
      fsyncSync(handle);
    } finally {
      closeSync(handle);
    }
    // Without this a power cut could take the new name, and with it the key that bundles are signed by.
    const folder = openSync(dirname(file), 'r');
    fsyncSync(folder);
    closeSync(folder);
  } catch (error) {
    throw new SettingsError(
      `${name} does not exist, and a new key to sign configuration with can't be left there (${(error as NodeJS.ErrnoException).code}).`,
    );
  }
  new Logger('Config').log({ file }, 'made a key that signs configuration');
  return privateKey;
}
