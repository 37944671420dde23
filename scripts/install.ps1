# Installs ollana for the user who runs this, from a release: the folder of this script, or another
# folder or an address. Says what it will do, asks, then does it.
#
#   powershell -ExecutionPolicy Bypass -File install.ps1              install, start now and at log-in
#   powershell -ExecutionPolicy Bypass -File install.ps1 -Uninstall   remove all of it but the state
#
# -From PLACE: a release's folder or address. -Yes: don't ask. -NoService: only files.
param(
    [string]$From = $PSScriptRoot,
    [switch]$Uninstall,
    [switch]$Yes,
    [switch]$NoService
)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue' # Its bar makes a download ten times as slow.

$folder = Join-Path $env:LOCALAPPDATA 'Programs\ollana'
$program = Join-Path $folder 'ollana.exe'

function Confirm-Plan([string[]]$Plan) {
    Write-Host 'This will'
    $Plan | ForEach-Object { Write-Host "  $_" }
    if (-not $Yes -and (Read-Host 'Go on? [y/N]') -notin 'y', 'yes') {
        throw 'nothing was changed'
    }
}

# Copies a file of the release to a folder.
function Copy-Released([string]$Name, [string]$To) {
    if ($From -match '^https?://') {
        [Net.ServicePointManager]::SecurityProtocol = [Net.SecurityProtocolType]::Tls12
        Invoke-WebRequest -UseBasicParsing -Uri "$From/$Name" -OutFile (Join-Path $To $Name)
    } else {
        Copy-Item -LiteralPath (Join-Path $From $Name) -Destination $To
    }
}

# Puts ollana's folder into the user's PATH, or takes it out; what else is there stays as it is written.
function Set-UserPath([bool]$Wanted) {
    $key = [Microsoft.Win32.Registry]::CurrentUser.OpenSubKey('Environment', $true)
    $path = $key.GetValue('Path', '', 'DoNotExpandEnvironmentNames')
    $places = @($path -split ';' | Where-Object { $_ -and $_ -ne $folder })
    if ($Wanted) { $places += $folder }
    $key.SetValue('Path', ($places -join ';'), 'ExpandString')
    $key.Close()
    # Any change by this call tells the desktop, so that new terminals have the new PATH.
    [Environment]::SetEnvironmentVariable('OLLANA_INSTALLED', $null, 'User')
}

# A running program can't be deleted here, but renamed.
function Move-Aside {
    if (Test-Path -LiteralPath $program) {
        $old = Join-Path $folder ('old-' + [IO.Path]::GetRandomFileName())
        Move-Item -LiteralPath $program -Destination $old
    }
    Remove-Old
}

function Remove-Old {
    Get-ChildItem -Path $folder -Filter 'old-*' -ErrorAction SilentlyContinue |
        Remove-Item -Force -ErrorAction SilentlyContinue
}

if ($Uninstall) {
    Confirm-Plan "stop ollana, and not start it at log-in any more",
        "remove $program, and its folder from your PATH",
        "leave the state ($env:LOCALAPPDATA\ollana)"
    if (Test-Path -LiteralPath $program) { & $program service remove }
    Move-Aside
    Remove-Item -LiteralPath $folder -Recurse -Force -ErrorAction SilentlyContinue
    Set-UserPath $false
    Write-Host 'removed'
    exit
}

$new = Join-Path ([IO.Path]::GetTempPath()) ([IO.Path]::GetRandomFileName())
New-Item -ItemType Directory -Path $new | Out-Null
try {
    Copy-Released 'SHA256SUMS' $new
    $line = Get-Content (Join-Path $new 'SHA256SUMS') |
        Where-Object { $_ -match '^[0-9a-f]{64}  ollana-[^ /\\]*-windows-x86_64\.zip$' } |
        Select-Object -Last 1
    if (-not $line) { throw "there is no ollana for Windows in $From" }
    $sum, $archive = $line -split '  ', 2
    Copy-Released $archive $new
    $zip = Join-Path $new $archive
    if ((Get-FileHash -LiteralPath $zip -Algorithm SHA256).Hash -ne $sum) {
        throw "$archive has another checksum than in SHA256SUMS: it is damaged, or not the one; nothing was installed"
    }
    Expand-Archive -LiteralPath $zip -DestinationPath $new
    $plan = @("install $program, and put its folder into your PATH")
    if (-not $NoService) { $plan += 'start ollana now and at every log-in' }
    Confirm-Plan $plan
    New-Item -ItemType Directory -Path $folder -Force | Out-Null
    Move-Aside
    Copy-Item -Path (Join-Path $new 'ollana-*\*') -Destination $folder -Force
    Set-UserPath $true
    if ($NoService) {
        Write-Host "installed; start it in a new terminal with: ollana"
    } else {
        # It ends an ollana that runs, and keeps the options that one was installed with.
        & $program service install
        if ($LASTEXITCODE -ne 0) { throw "ollana service install failed with exit code $LASTEXITCODE" }
        Remove-Old
        Write-Host "ollana runs. If something doesn't work, in a new terminal: ollana doctor"
    }
} finally {
    Remove-Item -LiteralPath $new -Recurse -Force -ErrorAction SilentlyContinue
}
