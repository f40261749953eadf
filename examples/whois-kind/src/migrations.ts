import type { MigrationInterface, QueryRunner } from 'dns-agent-control-plane/extension';

/** The table of domains. Instants are milliseconds UTC. */
export class WhoisDomains1764000000000 implements MigrationInterface {
  async up(runner: QueryRunner): Promise<void> {
    await runner.query(`CREATE TABLE whois_domains (
      domain text NOT NULL PRIMARY KEY,
      server text NOT NULL,
      registrar text,
      expires_at bigint,
      checked_at bigint NOT NULL,
      lease_id bigint NOT NULL UNIQUE
    )`);
  }

  /** Fails: migrations are forward only. */
  down(): Promise<void> {
    return Promise.reject(new Error('Migrations are forward only; restore a backup instead.'));
  }
}
