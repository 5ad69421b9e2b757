{{- define "cloister.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "cloister.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "cloister.image" -}}
{{- $registry := required "image.registry: where you pushed the images of deploy/container" .root.Values.image.registry -}}
{{ $registry }}/cloister-{{ .part }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* What a container may do: as little as it needs. */}}
{{- define "cloister.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Copies settings and keys into the folder, which the process writes to, too. There is no shell to do it with. */}}
{{- define "cloister.seed" -}}
- name: seed
  image: {{ include "cloister.image" . }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  {{- include "cloister.confined" . | nindent 2 }}
  command:
    - /usr/bin/python3.11
    - -c
    - |
      import os
      from pathlib import Path
      os.umask(0o077)
      folder = Path("/var/lib/cloister/{{ .folder }}")
      for source, target, always in (
          (Path("/settings"), folder, True),
          (Path("/keys"), folder{{ if .keys }} / "{{ .keys }}"{{ end }}, False),
      ):
          target.mkdir(parents=True, exist_ok=True)
          for file in source.iterdir():
              place = target / file.name
              if file.is_file() and (always{{ if eq .part "server" }} or file.name == "roster"{{ end }} or not place.exists()):
                  part = place.with_name(place.name + ".part")
                  part.write_bytes(file.read_bytes())
                  os.replace(part, place)
  volumeMounts:
    - { name: data, mountPath: /var/lib/cloister }
    - { name: settings, mountPath: /settings, readOnly: true }
    - { name: keys, mountPath: /keys, readOnly: true }
  resources:
    requests: { cpu: 50m, memory: 64Mi }
    limits: { memory: 256Mi }
{{- end }}

{{- define "cloister.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 60
securityContext:
  runAsNonRoot: true
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "cloister.probes" -}}
startupProbe:
  httpGet: { path: /livez, port: operations }
  periodSeconds: 10
  failureThreshold: {{ .patience }}
livenessProbe:
  httpGet: { path: /livez, port: operations }
  periodSeconds: 30
  timeoutSeconds: 10
readinessProbe:
  httpGet: { path: /readyz, port: operations }
  periodSeconds: 10
  timeoutSeconds: 10
{{- end }}

{{- define "cloister.volumes" -}}
- name: settings
  configMap:
    name: {{ .root.Release.Name }}-{{ .part }}
- name: keys
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
{{- end }}

{{- define "cloister.claim" -}}
- metadata:
    name: data
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .className }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .size }}
{{- end }}
